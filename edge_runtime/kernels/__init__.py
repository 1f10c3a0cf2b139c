"""The native core and its Python side. The C++ sources stand beside this file, one folder per kernel family."""
