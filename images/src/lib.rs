//! Images and the lab.
