"""How a record lies in a payload, a row or a folder: plain, LangChain, LlamaIndex."""
