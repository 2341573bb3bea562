//! What an operator asks of setu, and what setu shows an operator.

pub mod admin;
pub mod check;
pub mod doctor;
pub mod init;
mod languages;
pub mod reload;
mod running;
pub mod share;
pub mod status;
mod text;
pub mod wire;

pub use running::difference_here;
