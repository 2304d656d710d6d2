"""What goes into a model: images, tables, several of them at once. What each kind of input is moves in here."""
