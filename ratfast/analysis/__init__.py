"""What sets of networks look like: their weights, what they predict, and averages of some of them.

Importing this package needs no torch. Data flow one way: `networks` opens checkpoints and images, `predictions`
makes predictions of networks and averages, each once; `curves`, `diversity`, `similarity`, `subsets`, `averages` and
`lines` are functions of arrays; `experiments` puts them together; `whole` makes all of them for a training.
`distances` looks at weights alone, `domainbed` at records of runs.
"""
