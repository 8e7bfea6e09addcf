//! ambit's protobuf definitions and the code generated from them.
