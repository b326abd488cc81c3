# A text file as the inside of a C string literal, line by line.
s/["\\]/\\&/g
s/^ */"/
s/$/\\n"/
