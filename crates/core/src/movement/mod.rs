//! Plans of data movement: what is fetched next.
