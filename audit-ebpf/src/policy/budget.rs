//! Is a cgroup over its budget? A ladder: within the budget all is told; beyond it one in so many,
//! and of these only so many in a second; the rest is counted, by cgroup and class, exactly.

use audit_common::{
    limits::{BUDGET_BUCKETS, SHED_CGROUPS},
    policy::{Bucket, Budget, BudgetKey, Policy, Shed},
    record::Header,
};
use aya_ebpf::{
    helpers::generated::bpf_ktime_get_boot_ns,
    macros::map,
    maps::{LruHashMap, PerCpuArray, PerCpuHashMap},
};

use super::shed_bank;
use crate::record::{CLASSES, bounded, count_shed};

#[map]
static BUCKETS: LruHashMap<BudgetKey, Bucket> = LruHashMap::with_max_entries(BUDGET_BUCKETS, 0);
/// In two banks, so that the agent can read and empty one while the other is in use.
#[map]
static SHED: PerCpuHashMap<BudgetKey, Shed> = PerCpuHashMap::with_max_entries(SHED_CGROUPS, 0);
/// By class, of cgroups that found no room in [`SHED`].
#[map]
static SHED_REST: PerCpuArray<Shed> = PerCpuArray::with_max_entries(CLASSES, 0);

/// Counts what is.
#[inline(always)]
pub fn is_over(header: &Header, policy: &Policy, class: u32) -> bool {
    let class = bounded::<7>(class.into());
    // SAFETY: the mask is that of the array's size.
    let budget = unsafe { &*policy.budgets.as_ptr().add(class as usize) };
    if budget.interval_ns == 0 {
        return false;
    }
    let mut key = BudgetKey {
        cgroup_id: header.cgroup_id,
        class: class as u32,
        bank: 0,
    };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let Some(bucket) = BUCKETS.get_ptr_mut(key) else {
        let bucket = Bucket {
            next_ns: now + budget.interval_ns,
            next_sampled_ns: now,
            over: 0,
        };
        // Where it finds no room the next record is the first again.
        let _ = BUCKETS.insert(key, bucket, 0);
        return false;
    };
    // SAFETY: map memory; changed by several CPUs at once it is wrong by a few records.
    let bucket = unsafe { &mut *bucket };
    if within(
        &mut bucket.next_ns,
        now,
        budget.interval_ns,
        budget.burst_ns,
    ) {
        return false;
    }
    let sampled = is_sampled(bucket, budget, now);
    if !sampled {
        count_shed(class as u8);
    }
    key.bank = shed_bank();
    count(&key, sampled);
    !sampled
}

/// The generic cell rate algorithm; takes a cell where there is one.
#[inline(always)]
fn within(next_ns: &mut u64, now: u64, interval_ns: u64, burst_ns: u64) -> bool {
    let next = if *next_ns > now { *next_ns } else { now };
    if next - now >= burst_ns {
        return false;
    }
    *next_ns = next + interval_ns;
    true
}

#[inline(always)]
fn is_sampled(bucket: &mut Bucket, budget: &Budget, now: u64) -> bool {
    bucket.over += 1;
    if budget.sample == 0 || bucket.over % budget.sample != 0 {
        return false;
    }
    let interval = budget.sampled_interval_ns;
    within(&mut bucket.next_sampled_ns, now, interval, interval)
}

#[inline(always)]
fn count(key: &BudgetKey, sampled: bool) {
    let counts = match SHED.get_ptr_mut(key) {
        Some(counts) => Some(counts),
        None => {
            let _ = SHED.insert(
                key,
                Shed {
                    shed: 0,
                    sampled: 0,
                },
                0,
            );
            SHED.get_ptr_mut(key)
        }
    };
    let counts = counts.or_else(|| SHED_REST.get_ptr_mut(key.class));
    if let Some(counts) = counts {
        // SAFETY: a per-CPU map value of one class, whose programs never interrupt each other.
        unsafe {
            if sampled {
                (*counts).sampled += 1;
            } else {
                (*counts).shed += 1;
            }
        }
    }
}
