//! Nodes and pods as network namespaces, real clients and servers, load harness.
