//! The map of a volume: block to (segment, page).
