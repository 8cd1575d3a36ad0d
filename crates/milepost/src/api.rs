//! The HTTP API as the commands use it: requests out, answers or problems back.

use anyhow::{Context, anyhow};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;

/// How a command finds the server.
#[derive(clap::Args, Debug, Clone)]
pub struct ApiArgs {
    /// Address of the server's HTTP API
    #[arg(
        long,
        env = "MILEPOST_API",
        default_value = "http://127.0.0.1:8080",
        global = true
    )]
    pub api: String,
    /// Print JSON, for scripts
    #[arg(long, global = true)]
    pub json: bool,
}

/// A client of one server; clones share its connections.
#[derive(Clone)]
pub struct Api {
    base: String,
    http: reqwest::Client,
}

impl Api {
    /// A client for the API at `base`, such as `http://127.0.0.1:8080`.
    pub fn new(base: &str) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .build()
            .context("cannot set up the HTTP client")?;
        Ok(Self {
            base: base.trim_end_matches('/').to_owned(),
            http,
        })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}/api/v1{path}", self.base))
    }

    /// Sends, and turns an unreachable server or a problem into an error that says what to do.
    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = request.send().await.map_err(|error| {
            let hint = "is `milepost serve` running there? name another address with --api";
            anyhow!(error).context(format!("cannot reach the API at {} ({hint})", self.base))
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.text().await.unwrap_or_default();
        let problem: Value = serde_json::from_str(&body).unwrap_or(Value::Null);
        match problem["detail"].as_str() {
            Some(detail) => Err(anyhow!("{detail}")),
            None => Err(anyhow!("the server answered {status}: {body}")),
        }
    }

    /// GET a JSON document.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let response = self.send(self.request(Method::GET, path)).await?;
        response
            .json()
            .await
            .context("the server's answer is not JSON")
    }

    /// GET a text document.
    pub async fn get_text(&self, path: &str) -> anyhow::Result<String> {
        let response = self.send(self.request(Method::GET, path)).await?;
        response
            .text()
            .await
            .context("the server's answer broke off")
    }

    /// GET a document that comes line by line.
    pub async fn lines(&self, path: &str) -> anyhow::Result<Lines> {
        let response = self.send(self.request(Method::GET, path)).await?;
        Ok(Lines {
            response,
            read: Vec::new(),
        })
    }

    /// Sends a JSON document and returns the JSON answer, `null` for an empty one.
    pub async fn send_json(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> anyhow::Result<Value> {
        let response = self.send(self.request(method, path).json(body)).await?;
        let text = response
            .text()
            .await
            .context("the server's answer broke off")?;
        match text.is_empty() {
            true => Ok(Value::Null),
            false => serde_json::from_str(&text).context("the server's answer is not JSON"),
        }
    }

    /// Asks a query; the answer's column names and rows, each row in the order of the columns.
    pub async fn sql(&self, query: &str) -> anyhow::Result<Answer> {
        let answer = self
            .post("/sql", &serde_json::json!({ "query": query }))
            .await?;
        serde_json::from_value(answer).context("the server's answer is not that of a query")
    }

    /// POST a JSON document.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send_json(Method::POST, path, body).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.send(self.request(Method::DELETE, path))
            .await
            .map(drop)
    }

    /// All items of a cursor-paged list, page after page.
    pub async fn list(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let separator = if path.contains('?') { '&' } else { '?' };
            let page = match &cursor {
                Some(cursor) => format!("{path}{separator}limit=1000&cursor={cursor}"),
                None => format!("{path}{separator}limit=1000"),
            };
            let mut page = self.get(&page).await?;
            if let Value::Array(found) = page["items"].take() {
                items.extend(found);
            }
            match page["next_cursor"].take() {
                Value::String(next) => cursor = Some(next),
                _ => return Ok(items),
            }
        }
    }
}

/// An answer that is read as it comes.
pub struct Lines {
    response: Response,
    read: Vec<u8>,
}

impl Lines {
    /// The next line that is not empty; `None` at the end.
    pub async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            while let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                if !line.is_empty() {
                    return Ok(Some(line));
                }
            }
            let chunk = self
                .response
                .chunk()
                .await
                .context("the server's answer broke off")?;
            match chunk {
                Some(chunk) => self.read.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}

/// Text as one segment of a path, or as a value in a query: everything but letters, digits and `-._~` as
/// `%` and two hexadecimal digits (RFC 3986 section 2.1).
pub fn segment(text: &str) -> String {
    let mut segment = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                segment.push(char::from(byte));
            }
            _ => segment.push_str(&format!("%{byte:02X}")),
        }
    }
    segment
}

/// The answer to a query.
#[derive(Debug, serde::Deserialize)]
pub struct Answer {
    /// The columns, in the order of the query.
    pub columns: Vec<Column>,
    /// The rows; each has a value per column.
    pub rows: Vec<Vec<Value>>,
    /// How long it took, milliseconds.
    pub elapsed_ms: u64,
}

/// A column of an answer.
#[derive(Debug, serde::Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
}

impl Answer {
    /// The rows as objects, for scripts and for looking up by name. Of columns with the same name the
    /// last stays.
    pub fn objects(self) -> Vec<Value> {
        let names: Vec<String> = self.columns.into_iter().map(|column| column.name).collect();
        self.rows
            .into_iter()
            .map(|row| Value::Object(names.iter().cloned().zip(row).collect()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::segment;

    #[test]
    fn any_client_id_is_one_segment() {
        for (text, encoded) in [
            ("tcu-1", "tcu-1"),
            ("tcu-1/app", "tcu-1%2Fapp"),
            ("address:10.0.0.0/8", "address%3A10.0.0.0%2F8"),
            ("ä?&#", "%C3%A4%3F%26%23"),
        ] {
            assert_eq!(segment(text), encoded);
        }
    }
}
