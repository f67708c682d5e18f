//! One machine, from configuration to exit.
