//! The command line: arguments, config file and environment become one configuration.
