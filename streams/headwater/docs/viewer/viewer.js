// Which page it is, by its address: /docs/api or /docs/topics.
const name = location.pathname.endsWith("/api") ? "api" : "topics";
document.title = `Headwater: ${name === "api" ? "HTTP" : "topics"}`;
await import(`./${name}.js`);
