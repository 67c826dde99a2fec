//! Map pages and checkpoint objects in bytes.
