def make(args): pass
