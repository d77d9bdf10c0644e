"""One page about a training: what came out, by how much, from what, and how to repeat it.

Data flow one way: `reading` takes what a training left on disk, `methods` makes its table, `charts` its figures,
`page` the HTML that holds all of them, and `writing` the files. Nothing is computed from weights or images here. Needs
the packages of the extra `report`.
"""
