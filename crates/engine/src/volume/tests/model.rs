//! A volume against a plain array, through restarts.
