# The chat page, or the API, anywhere. Build once, then say who may come in:
#   docker build -t gemma3vl .
#   docker run -p 7860:7860 -e GEMMA3VL_AUTH=anna:secret -v gemma3vl:/data gemma3vl
#   docker run --gpus all -e HF_TOKEN -p 7860:7860 -e GEMMA3VL_AUTH=anna:secret -v gemma3vl:/data gemma3vl app --host 0.0.0.0 --model 4b-it
#   docker run -p 8000:7860 -e GEMMA3VL_API_KEYS -v gemma3vl:/data gemma3vl serve --host 0.0.0.0 --port 7860
FROM python:3.12-slim

RUN useradd --create-home --uid 1000 user && mkdir /data && chown user /data
COPY requirements.txt /app/
RUN pip install --no-cache-dir -r /app/requirements.txt
COPY pyproject.toml README.md LICENSE NOTICE /app/
COPY gemma3vl_app /app/gemma3vl_app
RUN pip install --no-cache-dir --no-deps /app

USER user
# Conversations, downloaded and converted weights: what has to outlast the container.
ENV GEMMA3VL_DATA=/data GEMMA3VL_CACHE=/data/cache HF_HOME=/data/huggingface
WORKDIR /home/user
EXPOSE 7860
HEALTHCHECK CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/healthz')"]
ENTRYPOINT ["gemma3vl"]
CMD ["app", "--host", "0.0.0.0"]
