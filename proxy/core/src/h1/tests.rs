//! Tables and properties of the codec.
