/* A page opened from the disk may start no Worker: the search's script runs in a hidden frame there.
   The theme asks for the name IFrameWorker, from which it takes that importScripts() loads tags. */
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      const inside = frame.contentWindow
      const load = source => new Promise((done, failed) => {
        const script = inside.document.createElement("script")
        Object.assign(script, { src: source, async: false, onload: done, onerror: failed })
        inside.document.body.appendChild(script)
      })
      inside.importScripts = (...sources) => Promise.all(sources.map(load))
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.ready = load(url)
      this.inside = inside
    }
    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
  window.Worker = window.IFrameWorker
}
