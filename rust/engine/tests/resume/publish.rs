//! Killed while it publishes, before each system call that changes a name or makes something durable: complete in truth,
//! never half.
