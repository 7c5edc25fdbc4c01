"""From float to integers: which scheme each linear has, and what each scheme makes of a layer."""
