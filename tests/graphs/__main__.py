from tests.graphs import main

main()
