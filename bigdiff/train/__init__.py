"""The training loop. `setup` alone knows every concrete class; `loop` fits one screen."""
