// Follows a stream as Go programs do: os.Open, whose files are polled, edge-triggered. With an
// argument each read has a deadline, and is tried again.
package main

import (
	"errors"
	"fmt"
	"os"
	"time"
)

func main() {
	file, err := os.Open("follow/next")
	if err != nil {
		panic(err)
	}
	fmt.Println("open")
	bytes := make([]byte, 100)
	for {
		if len(os.Args) > 1 {
			if err := file.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
				panic(err)
			}
		}
		n, err := file.Read(bytes)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Print(string(bytes[:n]))
	}
}
