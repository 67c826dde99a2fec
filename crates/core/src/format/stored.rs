//! A segment's stored form: compressed frames, footer index, block table.
