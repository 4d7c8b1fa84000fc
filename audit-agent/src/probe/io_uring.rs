//! How does the running kernel tell what is asked of it through io_uring? Its tracepoints and their
//! arguments have changed often:
//!
//! | Linux | submission | completion |
//! |---|---|---|
//! | 5.10, 5.15 | `io_uring_submit_sqe(ring, request, ...)` | `io_uring_complete(ring, user_data, ...)` |
//! | 6.1 | `io_uring_submit_sqe(request, ...)` | `io_uring_complete(ring, request, user_data, result, ...)` |
//! | 6.12 | `io_uring_submit_req(request)` | as 6.1 |
//! | 6.18, 7.2 | `io_uring_submit_req(request)` | `io_uring_complete(ring, request, entry)` |
//!
//! Where a completion does not name its request, everything is told when it is submitted, without
//! its result.

use audit_common::{config::Settings, offsets::MISSING};
use aya::{Ebpf, maps::Array};

use super::{
    btf::{Argument, Types},
    hooks::{Place, Point},
};
use crate::calls;

const SUBMIT: [&str; 2] = ["io_uring_submit_req", "io_uring_submit_sqe"];
const COMPLETE: &str = "io_uring_complete";
/// Completions that found no room in their queue (Linux 5.19).
const OVERFLOW: &str = "io_uring_cqe_overflow";

/// Which tracepoints there are, and which argument is the request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tracepoints {
    submit: Result<(&'static str, u32), String>,
    complete: Option<u32>,
    /// The third argument of a completion is its entry.
    entry: bool,
    overflow: bool,
}

impl Tracepoints {
    pub(super) fn of(types: &Types) -> Self {
        Self::of_arguments(|name| types.tracepoint(name))
    }

    fn of_arguments(arguments: impl Fn(&str) -> Option<Vec<Argument>>) -> Self {
        let submit = SUBMIT
            .iter()
            .find_map(|name| Some((*name, arguments(name)?)))
            .ok_or_else(|| {
                let [new, old] = SUBMIT;
                format!("this kernel has no tracepoint {new}, nor {old}; is io_uring built in?")
            });
        let complete = arguments(COMPLETE).unwrap_or_default();
        Self {
            submit: submit.and_then(|(name, arguments)| match request(&arguments) {
                Some(at) => Ok((name, at)),
                None => Err(format!(
                    "this kernel's tracepoint {name} does not name the request"
                )),
            }),
            // The programs take it from there.
            complete: request(&complete).filter(|at| *at == 1),
            entry: matches!(complete.get(2), Some(Argument::Pointer(_))),
            overflow: arguments(OVERFLOW).is_some(),
        }
    }

    /// The part of the programs' settings that is about io_uring.
    pub(super) fn settings(&self, types: &Types) -> Settings {
        let bit = |name: &str| types.enumerator(name).map_or(0, |bit| 1 << (bit & 31));
        Settings {
            uring_submit_request: self.submit.as_ref().map_or(MISSING, |(_, at)| *at),
            uring_complete_request: self.complete.unwrap_or(MISSING),
            uring_complete_entry: self.entry.into(),
            uring_has_credentials: bit("REQ_F_CREDS_BIT"),
            uring_has_data: bit("REQ_F_ASYNC_DATA_BIT"),
            uring_accepts_many: bit("REQ_F_APOLL_MULTISHOT_BIT"),
            ..Settings::default()
        }
    }

    /// Has the programs look at the `operations`, each the same as a call; where they are to be
    /// attached.
    pub(super) fn points(
        &self,
        ebpf: &mut Ebpf,
        operations: &[(u8, &str)],
    ) -> Result<Vec<Point>, String> {
        if operations.is_empty() {
            return Ok(Vec::new());
        }
        let (submit, _) = self.submit.clone()?;
        // Borrowed, not taken: the programs that use it are loaded later.
        let map = ebpf.map_mut("URING_CALLS");
        let map = map.ok_or("the object has no map URING_CALLS")?;
        let mut slots: Array<_, u32> = map.try_into().map_err(|e| format!("URING_CALLS: {e}"))?;
        for (operation, name) in operations {
            let slot = calls::slot(name).ok_or_else(|| format!("there is no call {name}"))?;
            let set = slots.set((*operation).into(), slot, 0);
            set.map_err(|error| format!("URING_CALLS: {name}: {error}"))?;
        }
        // The result first: a request that is kept must find it.
        let complete = self.complete.map(|_| ("uring_complete", COMPLETE));
        let overflow = complete.filter(|_| self.overflow);
        let overflow = overflow.map(|_| ("uring_overflow", OVERFLOW));
        let points = [complete, overflow, Some(("uring_submit", submit))];
        let point = |(program, tracepoint)| Point {
            program,
            place: Place::Tracepoint(tracepoint),
        };
        Ok(points.into_iter().flatten().map(point).collect())
    }

    /// What cannot be told, although the hook is attached.
    pub(super) fn lacks(&self) -> Option<String> {
        self.complete.is_none().then(|| {
            format!(
                "this kernel's tracepoint {COMPLETE} does not name the request: operations are \
                 told when they are submitted, without their result"
            )
        })
    }
}

/// Which argument is the request: it says so, or it follows the ring.
fn request(arguments: &[Argument]) -> Option<u32> {
    let pointer = |name: &str| Argument::Pointer(name.to_owned());
    let named = arguments.iter().position(|of| *of == pointer("io_kiocb"));
    let second = arguments.get(1).filter(|of| **of == pointer(""));
    let at = named.or(second.map(|_| 1))?;
    u32::try_from(at).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a table like "io_uring_complete: void, void, int".
    fn kernel(tracepoints: &'static [(&str, &str)]) -> Tracepoints {
        Tracepoints::of_arguments(|name| {
            let (_, arguments) = tracepoints.iter().find(|(found, _)| *found == name)?;
            let of = arguments.split(' ').map(|of| match of {
                "n" => Argument::Number,
                "void" => Argument::Pointer(String::new()),
                name => Argument::Pointer(name.to_owned()),
            });
            Some(of.collect())
        })
    }

    #[test]
    fn the_request_is_found_on_every_kernel() {
        let of_5_10 = kernel(&[
            ("io_uring_submit_sqe", "void void n n n n n"),
            ("io_uring_complete", "void n n n"),
        ]);
        assert_eq!(of_5_10.submit, Ok(("io_uring_submit_sqe", 1)));
        assert_eq!((of_5_10.complete, of_5_10.overflow), (None, false));
        assert!(of_5_10.lacks().is_some());
        let of_6_1 = kernel(&[
            ("io_uring_submit_sqe", "io_kiocb n"),
            ("io_uring_complete", "void void n n n n n"),
            ("io_uring_cqe_overflow", "void n n n void"),
        ]);
        assert_eq!(of_6_1.submit, Ok(("io_uring_submit_sqe", 0)));
        assert_eq!((of_6_1.complete, of_6_1.entry), (Some(1), false));
        assert!(of_6_1.overflow && of_6_1.lacks().is_none());
        let of_6_18 = kernel(&[
            ("io_uring_submit_req", "io_kiocb"),
            ("io_uring_complete", "io_ring_ctx void io_uring_cqe"),
        ]);
        assert_eq!(of_6_18.submit, Ok(("io_uring_submit_req", 0)));
        assert_eq!((of_6_18.complete, of_6_18.entry), (Some(1), true));
    }

    #[test]
    fn a_kernel_without_them_is_told_why() {
        let none = kernel(&[]).submit.expect_err("no tracepoint");
        assert!(none.contains("no tracepoint io_uring_submit_req"), "{none}");
        // As Linux 5.10 was before it got the io_uring of 5.15.
        let unnamed = kernel(&[("io_uring_submit_sqe", "void n n n n")]);
        let unnamed = unnamed.submit.expect_err("no request");
        assert!(unnamed.contains("does not name the request"), "{unnamed}");
    }
}
