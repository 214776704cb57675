// Shows how this very page arrived: facts of the browser and of the edge's response headers.
const show = (name, text) => {
  document.querySelector(`[data-fact="${name}"]`).textContent = text || "not told";
};

const protocols = { h3: "HTTP/3", h2: "HTTP/2", "http/1.1": "HTTP/1.1" };

async function main() {
  const [page] = performance.getEntriesByType("navigation");
  show("protocol", protocols[page.nextHopProtocol] ?? page.nextHopProtocol);
  show("ttfb", `${(page.responseStart - page.requestStart).toFixed(1)} ms`);

  const answer = await fetch(location.pathname, { method: "HEAD", cache: "no-store" });
  show("deploy", answer.headers.get("atoll-deploy")?.slice(0, 12));
  show("cache", answer.headers.get("cache-status")?.split(";").slice(1).join(";").trim());
  document.getElementById("facts").hidden = false;
}

main();
