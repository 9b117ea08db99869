"""Kernels on flat arrays: the head in plain torch (`blocked`), C++ (`cpu`) and Triton (`cuda`); dropout in C++."""
