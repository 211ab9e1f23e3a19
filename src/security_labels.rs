//! security_labels
