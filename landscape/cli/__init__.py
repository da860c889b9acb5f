"""The command line: `landscape train`, `landscape hessian`, ..."""
