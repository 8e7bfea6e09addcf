//! eBPF programs and maps, pod network namespaces, listeners. Yields captured connections; knows no policy, identity or tunnel.
