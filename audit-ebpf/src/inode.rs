//! What does an inode say of a file? And of a file of overlayfs, in which layer it is and which file
//! of another file system holds it.

use audit_common::{
    offsets::MISSING,
    record::{FileObject, layer},
};

use crate::{
    kernel::{self, Block},
    settings::offset,
};

const OVERLAYFS: u64 = 0x794c_7630;
/// Inodes are aligned to more than that.
const LAYER: u64 = 3;

/// Fills a [`FileObject`] from an inode.
#[inline(always)]
pub fn file_object(object: &mut FileObject, address: u64) {
    let Some(inode) = Block::of_inode(address) else {
        return;
    };
    object.inode = inode.field(offset!(inode_ino));
    object.size_bytes = inode.field(offset!(inode_size));
    object.mode = inode.field::<u16>(offset!(inode_mode)).into();
    object.owner_uid = inode.field(offset!(inode_uid));
    object.owner_gid = inode.field(offset!(inode_gid));
    let super_block = inode.field(offset!(inode_sb));
    object.device = kernel::read(super_block, offset!(super_block_dev));
    let real = overlay(address, super_block);
    object.layer = (real & LAYER) as u32;
    let holder = if object.layer == layer::NONE {
        object.real_inode = 0;
        object.real_device = 0;
        address
    } else {
        let holder = real & !LAYER;
        object.real_inode = kernel::read(holder, offset!(inode_ino));
        object.real_device = device(holder);
        holder
    };
    object.generation = kernel::read(holder, offset!(inode_generation));
}

#[inline(always)]
fn device(inode: u64) -> u32 {
    let super_block = kernel::pointer(inode, offset!(inode_sb));
    kernel::read(super_block, offset!(super_block_dev))
}

/// The inode that holds a file of overlayfs, with its [`layer`] in the lowest bits; 0 for others.
#[inline(always)]
fn overlay(inode: u64, super_block: u64) -> u64 {
    let magic: u64 = kernel::read(super_block, offset!(super_block_magic));
    if magic != OVERLAYFS || !is_known(offset!(overlay_inode)) {
        return 0;
    }
    holder(inode)
}

/// A global function, as [`crate::path::climb_steps`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn holder(inode: u64) -> u64 {
    let overlay = inode - offset!(overlay_inode) as u64;
    let upper = kernel::pointer(overlay, offset!(overlay_upper));
    if upper != 0 {
        return tagged(kernel::pointer(upper, offset!(dentry_inode)), layer::UPPER);
    }
    tagged(lower(overlay), layer::LOWER)
}

#[inline(always)]
fn is_known(offset: usize) -> bool {
    offset != MISSING as usize
}

/// The uppermost of the lower layers, as each kernel keeps it.
#[inline(always)]
fn lower(overlay: u64) -> u64 {
    // Linux 6.5
    if is_known(offset!(overlay_entry)) && is_known(offset!(overlay_entry_stack)) {
        let entry = kernel::pointer(overlay, offset!(overlay_entry));
        if kernel::read::<u32>(entry, offset!(overlay_entry_count)) == 0 {
            return 0;
        }
        let first = offset!(overlay_entry_stack) + offset!(overlay_path_dentry);
        let dentry = kernel::pointer(entry, first);
        return kernel::pointer(dentry, offset!(dentry_inode));
    }
    // Linux 5.19
    if is_known(offset!(overlay_lower_dentry)) {
        let dentry = kernel::pointer(overlay, offset!(overlay_lower_dentry));
        return kernel::pointer(dentry, offset!(dentry_inode));
    }
    if is_known(offset!(overlay_lower_inode)) {
        return kernel::pointer(overlay, offset!(overlay_lower_inode));
    }
    0
}

#[inline(always)]
fn tagged(inode: u64, layer: u32) -> u64 {
    if inode == 0 {
        0
    } else {
        inode | u64::from(layer)
    }
}
