//! The range lock: overlapping writes, zeroes, discards and read-modify-writes one at a time.
