"""aiokafka with shorter waits: the only folder that touches its private names. README.md lists each with its use."""
