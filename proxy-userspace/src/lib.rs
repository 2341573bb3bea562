//! setu's controller: accepts clients, dials WhatsApp for them, and hands each connection to the kernel.
