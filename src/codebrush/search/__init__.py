"""Embedded pictures in a database: found by words, by pictures and by their captions; and which are there twice."""
