"""Models in llama.cpp's file format, computed by llama.cpp."""
