//! What comes of an attempt at an instruction.

use super::paging::WalkError;

/// An exception that the guest gets (Intel SDM volume 3, 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exception {
    pub(super) vector: u8,
    pub(super) error_code: Option<u32>,
    /// CR2, for a page fault.
    pub(super) address: Option<u64>,
}

impl Exception {
    /// #BP.
    pub(super) const BREAKPOINT: Self = Self::plain(3);
    /// #UD.
    pub(super) const UNDEFINED: Self = Self::plain(6);
    /// #NM.
    pub(super) const NO_DEVICE: Self = Self::plain(7);
    /// #GP(0).
    pub(super) const PROTECTION: Self = Self {
        error_code: Some(0),
        ..Self::plain(13)
    };
    /// #MF.
    pub(super) const X87: Self = Self::plain(16);

    const fn plain(vector: u8) -> Self {
        Self {
            vector,
            error_code: None,
            address: None,
        }
    }

    /// #PF of an access to `address`.
    pub(super) const fn page_fault(error_code: u32, address: u64) -> Self {
        Self {
            vector: 14,
            error_code: Some(error_code),
            address: Some(address),
        }
    }
}

/// How the attempt ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// The instruction is over; a trap may follow.
    Completed(Option<Exception>),
    /// It caused this fault.
    Faulted(Exception),
    /// It cannot be carried out.
    Not(&'static str),
}

/// The fault that an access of data at `address` causes.
pub(super) fn fault(error: WalkError, address: u64) -> Done {
    match error {
        WalkError::PageFault(code) => Done::Faulted(Exception::page_fault(code, address)),
        WalkError::NotCanonical => Done::Faulted(Exception::PROTECTION),
        WalkError::NoMemory => Done::Not("its operand is not in memory"),
        WalkError::NotLongMode => Done::Not("it is not in 64-bit code"),
    }
}
