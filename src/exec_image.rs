//! exec_image
