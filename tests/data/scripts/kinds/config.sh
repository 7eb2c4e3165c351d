vllm serve --config ./conf/serve.yml --seed 7
