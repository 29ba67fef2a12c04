//! FUSE: one file, mounted on a file, in front of a driver.
