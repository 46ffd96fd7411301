//! A page store with a hard byte budget.
