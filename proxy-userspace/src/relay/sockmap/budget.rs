//! The bound on bytes that the kernel holds for all flows: what the controller gives back.

use std::sync::atomic::Ordering;

use crate::sys::{BudgetRef, DirectionRef, TcpInfo};

/// Makes a direction hold of the budget what its destination has not acknowledged of what was written since `base`.
pub(super) fn reserve(direction: DirectionRef<'_>, budget: BudgetRef<'_>, base: u64, info: &TcpInfo) {
    let outstanding = direction.window().outstanding(info.acked, base);
    hold(direction, budget, outstanding);
}

/// Makes a direction hold this much of the budget.
pub(super) fn hold(direction: DirectionRef<'_>, budget: BudgetRef<'_>, bytes: u64) {
    let before = direction.reserved().swap(bytes, Ordering::AcqRel);
    budget.reserved().fetch_add(bytes.wrapping_sub(before), Ordering::AcqRel);
}
