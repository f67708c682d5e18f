//! What kind of KVM the host has.
