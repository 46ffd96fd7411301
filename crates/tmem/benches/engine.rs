//! The engine beside its bare codec.

fn main() {}
