//! Decides where a connection may go. No input or output happens here.

mod allow_list;

pub use allow_list::{AllowList, Pattern};
