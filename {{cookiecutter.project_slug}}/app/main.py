from app.core.process.gc import load_app

app = load_app("app.application:create_app")
