//! A segment file in bytes: header, seal record, groups, index and block table.
