"""Who am I, may I go on, where do files land: the ground that everything else stands on."""
