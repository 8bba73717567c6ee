"""The process that runs user code: user code on the main thread, connections on one I/O thread."""
